"""What pgsr's numbers are called in Prometheus' form, wherever they are counted: by pgsr-serve, and by
pgsr-generate --ray on every node, where Ray puts ray_ before the names. Counters end in _total there."""

IMAGES = ("pgsr_images", "Images computed.")
WAITING = ("pgsr_images_waiting", "Images that nobody has begun.")
SHARDS = ("pgsr_shards", "Shards written.")
SHARD_SECONDS = ("pgsr_shard_seconds", "Time from a shard's beginning until it had its name.")
SHARD_BYTES = ("pgsr_shard_bytes", "Bytes of the shards written.")
LOST = ("pgsr_workers_lost", "Workers that ended before their work did.")
WORKERS = ("pgsr_workers", "Workers that make faces.")
