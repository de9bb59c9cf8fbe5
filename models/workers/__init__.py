"""Several HTTP worker processes in front of one engine process, which has the models.

A request passes through these modules, in this order:

1. HTTP worker: `worker_runtime` admits the images. Its `Admission` counts the images of all workers in `shared_slots`.
2. HTTP worker: a decode thread preprocesses each image, and `image_transfer` copies the pixels into a free slot. It
   sends a `Submission` (`messages`) over the worker's socket (`channel`).
3. Engine process: `engine_server` receives the message, and `image_transfer` queues the image in the model's batcher.
4. Engine process: when the batch is done, its thread writes each answer into the image's slot. It sends each worker one
   `Answers` message.
5. HTTP worker: `worker_runtime` reads the message, and `image_transfer` takes the answers out of the slots.

Over the same socket `engine_server` announces what is served, and workers call `load`, `unload`, `compare` and
`exposition` in the engine process (`messages`)."""
