"""The application: data, training, inference and evaluation of brain-tumour segmentation."""
