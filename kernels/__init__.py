"""Numbers: arrays, strides and threads. Knows no model, no sequence and no request."""
