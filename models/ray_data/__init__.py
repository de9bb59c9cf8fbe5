"""Jobs over files on a Ray cluster: the steps of models.offline, each where Ray puts it. Needs the extra `ray`.

Reading and preprocessing are tasks, on whatever cores there are; forwards are actors that have loaded the model once;
what they answer is written where it was computed. There is no scheduler of ours.
"""
