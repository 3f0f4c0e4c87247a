"""A double of a Kubernetes cluster with KubeRay: threads of one process over one `Store`."""
