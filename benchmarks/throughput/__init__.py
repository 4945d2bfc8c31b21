"""pgsr-bench throughput: images a second of every stage."""
