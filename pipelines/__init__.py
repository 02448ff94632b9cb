"""Device side of fourstep: from encoded picture and prompt to encoded picture. No HTTP, no asyncio, no database.

Where to read what, from the words that travel to the tools:

    the vocabulary    types (all that `server` may import), errors
    the algorithm     lcm; schedule, trajectory; prompts, safety
    its networks      unet, vae; blocks, kernels; graphs, compiled
    pictures          images, headers/*
    the weights       checkpoint; recipe, layout, single_file, sd15, shelf, hub; weights, modules, lora; demo
    the loop          batching, engine, calls, staging, requests, gallery, codec_threads, pace
    what it drives    stages (the contract), on_torch (in earnest), instant (no model)
    its device        fitting; devices, lanes, footprint
    the process       worker
    the tools         tools: pull, doctor, bench
"""
