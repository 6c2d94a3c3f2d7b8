# Generated from router/_async/pool/__init__.py by tools/async_to_sync.py: do not edit.
