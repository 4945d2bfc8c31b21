"""pgsr-generate: latents and interpolation, and the jobs that write faces."""
