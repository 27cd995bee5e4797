"""Recovery from a teacher."""
