"""pgsr-serve: faces over HTTP, and a page to look at them.

`batcher` puts what many requests want into batches, `models` are the opened bundles, `api` the addresses,
`guard` what stands before all of them, `server` the process.
"""
