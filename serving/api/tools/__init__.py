"""Tools: what a model is told about them, the grammar of its calls, and the way back from its text."""
