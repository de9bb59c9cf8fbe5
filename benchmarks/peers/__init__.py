"""The other servers, each as its documentation recommends, around the classifier in `classifier`."""
