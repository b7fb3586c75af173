"""python -m yolo_mkd COMMAND key=value ...: the same as yolo-mkd."""

from yolo_mkd.cli import main

if __name__ == "__main__":
    main()
