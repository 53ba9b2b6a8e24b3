"""What is done with a trained model: prediction, evaluation, explanation, export, figures, the page."""
