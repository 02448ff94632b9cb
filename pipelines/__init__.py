"""Device side of fourstep: from encoded picture and prompt to encoded picture. No HTTP, no asyncio, no database.

Reading order: types, schedule, lcm, prompts, safety, images, checkpoint, batching, stages, engine, codec_threads,
worker, tools.
"""
