"""pgsr-bench quality, compare, swd and neighbours: how good generated images are."""
