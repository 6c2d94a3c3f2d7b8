"""What the two shells stand on: the pairs where threads and asyncio differ in more than ``async`` and ``await``."""
