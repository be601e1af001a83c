"""The HTTP server on a Ray cluster: Ray Serve's proxies, a front, and replicas with a batcher each."""
