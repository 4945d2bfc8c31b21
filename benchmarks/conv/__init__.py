"""pgsr-bench conv: one convolution at a time, vanilla beside depthwise and pointwise."""
