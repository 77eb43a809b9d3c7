"""Video-MME without subtitles: see ``eval.tasks.videomme``, whose data it reads."""

from eval.tasks.videomme import task_of

TASK = task_of("videomme_no_subtitles", subtitles=False)
