"""pgsr-bench rewrites: what each rewrite of the export saves and gains."""
