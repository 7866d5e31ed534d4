"""The same clients, server and methods on Flower; see docs/deployment.md."""
