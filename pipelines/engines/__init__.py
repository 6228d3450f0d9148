"""Other people's engines, run on this project's data and asked by its evaluator."""
