"""Device side of fourstep: from encoded picture and prompt to encoded picture. No HTTP, no asyncio, no database.

Sub-packages and modules, in reading order:

    messages, errors    what server and engine process say to each other; errors before a model runs
    worker              the engine process: messages in, results out
    engine              the loop that feeds the device: admit, step, retire; no torch
    images              encoded pictures ⇄ pixels, with limits on size and memory
    model               the algorithm (latent consistency img2img) and its networks
    device              a model on a device: streams, memory, CUDA graphs
    weights, hub        weights on disk → networks; which files, and from where
    tools               pull, doctor, bench
"""
