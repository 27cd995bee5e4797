"""What to cut: importances, selection under a goal."""
