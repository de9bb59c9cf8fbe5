"""Adapters of protocols that other servers speak. Each is a router that reads its own requests, and writes answers and
errors in its own form; rights, limits, admission, batching, metrics and logs are those of the native routes.

Adapters are independent of each other. They use `adapter` for routes and predictions, `views` for names of models, and
app/api/json_images.py for images in JSON. `tensors` and `output_tensors` are the wire format of the Open Inference
Protocol, over REST and gRPC, and `oip_models` what it tells of models.
"""
