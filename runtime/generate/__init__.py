"""pgsr-generate: latents, truncation and interpolation, and the jobs that write faces."""
