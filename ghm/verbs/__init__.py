"""What `ghm` can do, one file a verb: each has a `main()` that reads `sys.argv` and raises what goes wrong."""
