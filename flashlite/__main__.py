from flashlite.cli.main import main

main()
