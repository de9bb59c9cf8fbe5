"""The other servers, each as its makers would have it written, around the one classifier in `classifier`."""
