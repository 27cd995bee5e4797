"""The user's model as an exported graph: which indices live or die together, and cutting them out."""
