"""The HTTP server on a Ray cluster: Ray Serve's proxies, and replicas with a batcher each."""
