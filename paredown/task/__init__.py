"""The user's side: model, data, loss and metric, and every check on them."""
