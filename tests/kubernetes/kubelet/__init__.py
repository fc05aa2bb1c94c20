"""The node double: pods as local processes, over HTTP only. Entry points: `kubelet.Kubelet`, `python -m` this."""
