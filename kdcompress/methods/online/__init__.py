"""Online methods: networks trained together learn from each other."""
