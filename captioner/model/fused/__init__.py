"""The fast twins of definitions; each is tested against the one it replaces."""
