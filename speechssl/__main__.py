"""`python -m speechssl VERB ...`, also under torchrun and `deepspeed --module`."""

from speechssl.cli.main import entry

if __name__ == "__main__":
    entry()
