"""The rules: frozen values in, frozen values out. No I/O, no clock, no random source, no lock, no thread, no driver."""
