"""Fine-tuning.

check     what there is to train on, and what can't work
preview   a page that draws examples as the model will see them
"""
