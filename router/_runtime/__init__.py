"""The code below both shells: pairs of functions and classes where threads and asyncio differ in more than syntax."""
