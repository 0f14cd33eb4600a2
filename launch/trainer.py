"""How launchers train: `ddjax.training.Trainer` with what the flags say."""

from absl import flags

from ddjax import data, parallel, runs, training

from . import common, recipes

FLAGS = flags.FLAGS


def trainer_of(run: runs.Run, recipe: recipes.Recipe, train: data.Dataset, folder: str = "") -> training.Trainer:
    """What trains the networks of a run.

    Args:
      run: whose checkpoints are kept.
      recipe: the settings.
      train: the training set.
      folder: under the run's checkpoints, where several networks of a run have the same role.
    """
    return training.Trainer(
        run.workdir / "checkpoints" / folder,
        recipes.make_settings(recipe, train.num_classes, train.image_shape[2]),
        train,
        stacking=FLAGS.stacking,
        checkpoint_seconds=FLAGS.checkpoint_seconds,
        progress=common.progress,
        evaluator=parallel.Evaluator(FLAGS.batch_size),
    )
