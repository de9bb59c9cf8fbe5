"""One resource each; routers never import one another."""
