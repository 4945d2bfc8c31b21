"""pgsr-upscale: pictures of any size through the upscaler, in tiles."""
