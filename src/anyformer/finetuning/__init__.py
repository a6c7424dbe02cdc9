"""Fine-tuning.

finetune  from a model and examples to a better model, as a function
recipe    what the training loop has to know for it
check     what there is to train on, and what can't work
preview   a page that draws examples as the model will see them

Nothing is imported here: `config` is for the command line as well, which doesn't wait for torch.
"""
