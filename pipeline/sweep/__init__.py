"""Many runs on one cache: which, one after another or on a cluster, and what came of them."""
