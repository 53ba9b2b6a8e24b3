"""The use of a trained model: prediction, evaluation, explanation, export, figures, the page in the browser."""
