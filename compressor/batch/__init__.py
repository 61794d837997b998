"""Many compressions from one manifest: in several processes, and on several machines."""
