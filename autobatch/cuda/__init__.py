"""The card: NVIDIA's driver, memory, machine code, and launches. Nothing happens at import.

driver        the functions of libcuda, checked; the one `Device` of the process
memory        arenas on the card, copies to and from it
machine_code  kernels compiled for the card, kept on the disk
records       what an instruction becomes on a card
launch        compiled loops: expand a table, launch it
interop       numbers that other libraries read here, and theirs
cublas        products by NVIDIA's library, if it is there
"""
