"""The compiler's passes, in order: trace, infer, plan, widen, check; then extract and verify."""
