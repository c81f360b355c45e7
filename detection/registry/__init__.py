"""Detectors in MLflow's model registry: put there by `detection promote`, used through `mlflow.pyfunc`.

detector = mlflow.pyfunc.load_model("models:/detector-shapes@champion")
pictures = pandas.DataFrame({"image": [Path("picture.jpg").read_bytes()]})
detector.predict(pictures, params={"threshold": 0.5})
"""
