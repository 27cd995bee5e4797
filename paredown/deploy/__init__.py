"""Files and runtimes: export, load, check. The only package that imports onnx, onnxruntime or openvino."""
