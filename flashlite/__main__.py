from flashlite.cli import main

main()
