"""Run the jobs of models.offline over files on a Ray cluster. Needs the extra `ray`.

Tasks read and preprocess the files; actors, which load the model once, run the forwards and write the results. Ray
schedules both.
"""
